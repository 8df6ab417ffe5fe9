"""node.yaml: what is read, and the one line that says what is wrong with it."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pneumoscope.errors import DataError
from pneumoscope.serve.dicom.config import CallerConfig, NodeConfig, RuleConfig, check_rules, load_config
from pneumoscope.serve.dicom.routing import ImageFacts, route

REPOSITORY = Path(__file__).parents[3]
CALLERS = {
    "folder": "x",
    "callers": [{"aet": "CR1"}],
    "folders": [{"path": "in", "bad": "bad", "name": "INBOX"}],
    "pull": [{"name": "ARCH", "url": "http://x"}],
}
NAN = float("nan")
PACS = {"name": "pacs", "host": "10.0.0.1", "aet": "PACS"}


def written(folder: Path, content: object) -> Path:
    path = folder / "node.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


def caller_from(*hosts: object) -> dict[str, object]:
    return {"folder": "x", "callers": [{"aet": "CR1", "hosts": list(hosts)}]}


def test_paths_are_those_from_the_folder_of_the_file(tmp_path):
    config = load_config(
        written(
            tmp_path,
            {
                "folder": "node",
                "bundle": "/models/b",
                "folders": [{"path": "in", "bad": "bad"}],
                "listen": {"tls": {"certificate": "c.pem", "key": "k.pem"}},
            },
        )
    )
    assert config.folder == tmp_path / "node"
    assert config.bundle == Path("/models/b")
    assert config.folders[0].path == tmp_path / "in"
    assert config.listen.tls.certificate == tmp_path / "c.pem"
    assert config.mode == "shadow", "nothing is sent unless it is said"


def test_the_example_is_valid():
    config = load_config(REPOSITORY / "deploy" / "node.example.yaml")
    assert config.destinations[0].name == "pacs"
    assert config.mode == "shadow"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"folder": "x", "listen": {"prot": 3}}, "unknown key 'listen.prot'; did you mean 'port'"),
        ({"folder": "x", "destination": []}, "did you mean 'destinations'"),
        ({}, "the key 'folder' is missing"),
        ([], "must have keys"),
        ("folder: [", "not YAML"),
        ({"folder": "x", "mode": "live"}, "mode live needs a destination"),
        ({"folder": "x", "aet": "A" * 17}, "AE title"),
        ({"folder": "x", "aet": "A\\B"}, "backslash"),
        ({"folder": "x", "listen": {"host": "0.0.0.0"}}, "name who may under callers"),
        ({"folder": "x", "rules": [{"destinations": ["y"]}]}, "unknown destination y"),
        (
            {"folder": "x", "rules": [{"view": ["LATERAL"]}]},
            "no image has the view 'LATERAL'; give PA, AP, LL,",
        ),
        ({"folder": "x", "rules": [{"view": ["PA", "RL"]}]}, "rules.0.view.1: no image has the view 'RL'"),
        ({"folder": "x", "rules": [{"view": ["L*", "LAT*"]}]}, "no image has the view 'LAT*'"),
        ({"folder": "x", "rules": [{"ages": [18, 5]}]}, "rules.0.ages: no age is at least 18 and below 5;"),
        ({"folder": "x", "rules": [{"ages": [5, 5]}]}, "no age is at least 5 and below 5"),
        ({"folder": "x", "rules": [{"ages": [None, 0]}]}, "no age is at least 0 and below 0"),
        ({"folder": "x", "rules": [{"ages": [NAN, None]}]}, "no age is at least nan; give [least, below]"),
        ({"folder": "x", "rules": [{"ages": [None, NAN]}]}, "no age is at least 0 and below nan"),
        ({"folder": "x", "rules": [{"ages": [NAN, NAN]}]}, "no age is at least nan and below nan"),
        ({"folder": "x", "rules": [{"ages": [float("inf"), None]}]}, "no age is at least inf"),
        (caller_from("cr1.example"), "callers.0.hosts.0: 'cr1.example' does not appear to be"),
        (caller_from("10.0.0.1", "10.0.0.5/24"), "callers.0.hosts.1: 10.0.0.5/24 has host bits set; give an"),
        (caller_from(""), "a network such as 10.20.0.0/24"),
        (caller_from(167772161), "'167772161' does not appear to be"),
        ({"folder": "x", "destinations": [PACS, PACS]}, "same name"),
        ({"folder": "x", "destinations": [{"name": "a"}]}, "needs host"),
        ({"folder": "x", "destinations": [{"name": "a", "kind": "dicomweb", "url": "ftp://x"}]}, "http"),
        ({"folder": "x", "destinations": [{**PACS, "name": "a/b"}]}, "letters, digits"),
        (
            {
                "folder": "x",
                "destinations": [{"name": "a", "kind": "dicomweb", "url": "http://pacs:port/x"}],
            },
            "destinations.0.url: host or port is not valid",
        ),
        ({"folder": "x", "pull": [{"name": "A", "url": "http://pacs:99999/x"}]}, "pull.0.url: host or port"),
        ({"folder": "x", "pull": [{"name": "A", "url": "http://[::1/x"}]}, "pull.0.url: host or port"),
        (
            {"folder": "x", "destinations": [{**PACS, "tls": {"certificate": "c"}}]},
            "both certificate and key",
        ),
        ({"folder": "x", "limits": {"max_pdu": 10}}, "limits.max_pdu"),
        ({"folder": "x", "folders": [{"path": "in", "bad": "bad", "done": "in"}]}, "folders of their own"),
        ({"folder": "x", "folders": [{"path": "in/new", "bad": "in"}]}, "folders of their own"),
        ({"folder": "x", "pull": [{"name": "A", "url": "x"}]}, "pull.0.url"),
        ({"folder": "x", "pull": [{"name": "A", "url": "http://x", "tls": {}}]}, "tls is for https://"),
        (
            {
                "folder": "x",
                "destinations": [{"name": "a", "kind": "dicomweb", "url": "http://x", "tls": {}}],
            },
            "tls is for https://",
        ),
    ],
)
def test_a_mistake_is_one_line(tmp_path, content, message):
    with pytest.raises(DataError) as error:
        load_config(written(tmp_path, content))
    assert message in str(error.value)
    assert str(tmp_path / "node.yaml") in str(error.value)
    assert "\n" not in str(error.value)


def test_rules_that_may_fit_are_taken(tmp_path):
    rules = [
        {"view": ["ll", "P*", "*", "unknown"]},
        {"ages": [None, 18]},
        {"ages": [65, None]},
        {"ages": [0, 0.1]},
        {"calling_aet": ["cr1", "INBOX", "ARCH"]},
    ]
    assert len(load_config(written(tmp_path, {**CALLERS, "rules": rules})).rules) == len(rules)


@pytest.mark.parametrize("title", ["NOBODY", "NOBODY*", "CR", "*1", "REBUILD1", "CR1 "])
def test_a_rule_for_a_sender_that_there_is_not(tmp_path, title):
    """It keeps the node from starting; the file can be read, so that other commands do their work."""
    rules = [{"modality": ["SC"]}, {"calling_aet": ["CR1", title]}]
    path = written(tmp_path, {**CALLERS, "rules": rules})
    with pytest.raises(DataError) as error:
        check_rules(load_config(path), path)
    assert str(error.value) == (
        f"{path}: rules.1.calling_aet: no sender has the calling AE title {title}; those that may send are "
        "CR1, INBOX, ARCH"
    )
    anyone = {"folder": "x", "rules": rules}
    check_rules(load_config(written(tmp_path, anyone)), path)


def test_rules_for_senders(tmp_path):
    """Also that of images which a rebuild found and which do not say who had sent them."""
    rules = [{"calling_aet": ["cr1", "INBOX", "ARCH", "c*", "CR1*", "*", "Rebuild", "REB*"]}]
    path = written(tmp_path, {**CALLERS, "rules": rules})
    config = load_config(path)
    check_rules(config, path)
    for title in config.rules[0].calling_aet:
        senders = (*config.senders, "REBUILD")
        rule = [RuleConfig(calling_aet=(title,))]
        assert any(route(ImageFacts(one), rule, ()).rule == 1 for one in senders), title


@pytest.mark.parametrize("mode", ["python", "json"])
def test_a_configuration_that_was_written_out_is_the_same(tmp_path, mode):
    content = caller_from("10.0.0.1", "10.20.0.0/24", "fd00::/8", "::ffff:10.1.0.0/112")
    config = load_config(written(tmp_path, content | {"rules": [{"ages": [None, 18]}]}))
    assert str(config.callers[0].hosts[3]) == "10.1.0.0/16"
    assert NodeConfig.model_validate(config.model_dump(mode=mode)) == config


def test_addresses_that_are_no_text(tmp_path):
    hosts = (ip_address("10.0.0.1"), ip_network("::ffff:10.1.0.0/112"))
    assert [str(one) for one in CallerConfig(aet="A", hosts=hosts).hosts] == ["10.0.0.1/32", "10.1.0.0/16"]


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="--config"):
        load_config(tmp_path / "node.yaml")


@given(st.binary(max_size=300))
def test_any_bytes_are_a_configuration_or_an_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("c") / "node.yaml"
    path.write_bytes(content)
    try:
        assert isinstance(load_config(path), NodeConfig)
    except DataError as error:
        assert "\n" not in str(error)


def test_the_first_rule_that_fits_counts():
    rules = [
        RuleConfig(modality=("SC",), process=False),
        RuleConfig(calling_aet=("ER*",), body_part=("CHEST*",), priority="urgent"),
        RuleConfig(ages=(None, 18), destinations=("children",)),
        RuleConfig(view=("PA", "AP"), destinations=()),
    ]
    both = ("pacs", "children")

    def of(**facts):
        return route(ImageFacts(**({"calling_aet": "CR1"} | facts)), rules, both)

    assert of(modality="SC").process is False
    assert of(calling_aet="ER2", body_part="chest pa").priority == "urgent"
    assert of(calling_aet="XER", body_part="CHEST").priority == "routine"
    assert of(age=17.9).destinations == ("children",)
    assert of(age=18.0).destinations == both
    assert of(view="AP").destinations == ()
    assert of().destinations == both, "an age that is not stated fits no rule on age"
    assert of().rule is None
