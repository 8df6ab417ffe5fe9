"""The parts of ``node.yaml``: addresses, TLS, callers, destinations, rules, limits and times."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pneumoscope.serve.dicom.config_types import (
    AeTitle,
    Ages,
    Level,
    Network,
    PlainName,
    Port,
    Seconds,
    ViewText,
    WebAddress,
)

__all__ = [
    "MB",
    "CallerConfig",
    "DestinationConfig",
    "FolderConfig",
    "Limits",
    "ListenConfig",
    "MetricsConfig",
    "PriorityConfig",
    "ProcessConfig",
    "PullConfig",
    "ResultsConfig",
    "RetryConfig",
    "RuleConfig",
    "Strict",
    "TlsClientConfig",
    "TlsServerConfig",
]

MB = 1_000_000


class Strict(BaseModel):
    """A part: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TlsServerConfig(Strict):
    """TLS of connections that others open to the node (BCP 195: TLS 1.2 or later, forward secrecy).

    Parameters
    ----------
    certificate, key : Path
        Of the node, PEM.
    client_ca : Path or None
        Authorities whose client certificates are accepted; a client without one is rejected. None: no
        client certificate is asked for.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None


class TlsClientConfig(Strict):
    """TLS of connections that the node opens.

    Parameters
    ----------
    ca : Path or None
        Authorities that the other side's certificate must come from; those of the system if not given.
    certificate, key : Path or None
        The node's own certificate, where the other side asks for one.
    server_name : str
        Name that the certificate must have; the host if empty.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str = ""

    @model_validator(mode="after")
    def _both(self) -> TlsClientConfig:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("give both certificate and key, or neither")
        return self


class ListenConfig(Strict):
    """Where the node listens for DICOM associations.

    Parameters
    ----------
    host : str
        Address to listen on.
    port : int
        0 for any free one.
    tls : TlsServerConfig or None
    """

    host: str = "127.0.0.1"
    port: Port = 11112
    tls: TlsServerConfig | None = None


class CallerConfig(Strict):
    """A system that may send to the node.

    Parameters
    ----------
    aet : str
        Calling AE title.
    hosts : tuple of network
        Addresses, and networks such as ``10.20.0.0/24``, that it may connect from; empty for any.
    port : int or None
        Where it listens, for the response to a request for storage commitment; without it the response
        goes nowhere and the request is rejected.
    host : str
        Where it listens; the address that it called from if empty.
    tls : TlsClientConfig or None
        For that response.
    """

    aet: AeTitle
    hosts: tuple[Network, ...] = ()
    port: Port | None = None
    host: str = ""
    tls: TlsClientConfig | None = None


def _check_tls(url: str, tls: TlsClientConfig | None) -> None:
    if tls is not None and url.startswith("http://"):
        raise ValueError(f"tls is for https://, and {url} is not encrypted; change the url, or remove tls")


class DestinationConfig(Strict):
    """Where results are sent.

    Parameters
    ----------
    name : str
        In rules, metrics and the journal.
    kind : {"dicom", "dicomweb"}
        C-STORE or STOW-RS.
    aet, host, port
        Of a ``dicom`` destination.
    url : str
        Root of a ``dicomweb`` one, such as ``https://pacs.example/dicom-web``.
    tls : TlsClientConfig or None
        Of a ``dicom`` destination, or of an ``https`` one.
    token_file : Path or None
        File with a bearer token, of a ``dicomweb`` destination; used where both are given.
    password_file : Path or None
        File with ``user:password``, of a ``dicomweb`` destination.
    query : bool
        Whether it can be asked what it has (C-FIND or QIDO-RS). Without, an object whose sending was cut off
        is sent again under the same UIDs.
    timeout : float
        Seconds to wait for a connection and for each response.
    max_pdu : int
        Largest PDU that it may send to the node.
    batch : int
        Objects that are sent in one go.
    """

    name: PlainName
    kind: Literal["dicom", "dicomweb"] = "dicom"
    aet: AeTitle = "ANY-SCP"
    host: str = ""
    port: Port = 104
    url: WebAddress = ""
    tls: TlsClientConfig | None = None
    token_file: Path | None = None
    password_file: Path | None = None
    query: bool = True
    timeout: Seconds = 30.0
    max_pdu: int = Field(default=65536, ge=4096, le=1_048_576)
    batch: int = Field(default=20, ge=1, le=1000)

    @model_validator(mode="after")
    def _complete(self) -> DestinationConfig:
        if self.kind == "dicom" and not self.host:
            raise ValueError("a dicom destination needs host, port and aet")
        if self.kind == "dicomweb" and not self.url.startswith(("http://", "https://")):
            raise ValueError("a dicomweb destination needs a url that starts with http:// or https://")
        if self.kind == "dicomweb":
            _check_tls(self.url, self.tls)
        return self


class RuleConfig(Strict):
    """What happens to images that fit; the first rule that fits an image counts.

    Parameters
    ----------
    calling_aet, modality, body_part, view : tuple of str
        Values of which the image must have one; empty for any. An image that does not state the value fits
        only an empty list. ``*`` at the end of a value stands for anything.
    ages : tuple of float or None
        Least age in years, and the age that the image must be below; None for no bound.
    process : bool
        False: the image is stored and journalled, and nothing else is done with it.
    destinations : tuple of str
        Names of destinations; all if not given.
    priority : {"routine", "high", "urgent"}
        Order of processing and sending.
    """

    calling_aet: tuple[str, ...] = ()
    modality: tuple[str, ...] = ()
    body_part: tuple[str, ...] = ()
    view: tuple[ViewText, ...] = ()
    ages: Ages = (None, None)
    process: bool = True
    destinations: tuple[str, ...] | None = None
    priority: Level = "routine"


class Limits(Strict):
    """Bounds on what others may ask of the node.

    Parameters
    ----------
    max_associations : int
        At the same time; a further one is rejected.
    max_connections : int
        TCP connections, associations included; a further one is closed.
    max_pdu : int
        Largest PDU that the node accepts, in bytes.
    max_dataset_mb : int
        Size of one dataset as it is received.
    max_inflated_mb : int
        Size of a deflated dataset after inflation.
    idle_seconds : float
        Silence after which an association, or a connection without one, is closed.
    min_free_mb : int
        Free disk space below which nothing more is accepted.
    """

    max_associations: int = Field(default=16, ge=1, le=500)
    max_connections: int = Field(default=64, ge=1, le=2000)
    max_pdu: int = Field(default=131_072, ge=4096, le=1_048_576)
    max_dataset_mb: int = Field(default=100, ge=1, le=2000)
    max_inflated_mb: int = Field(default=100, ge=1, le=2000)
    idle_seconds: Seconds = 60.0
    min_free_mb: int = Field(default=200, ge=0)


class ProcessConfig(Strict):
    """How images are processed.

    Parameters
    ----------
    workers : int or None
        Confined processes; one for each usable CPU if not given.
    seconds : float
        For one image.
    memory_mb : int
        That a worker may allocate beyond the loaded model.
    tries : int
        After so many crashes or time-outs an image is parked.
    quiet_seconds : float
        A study is complete once its senders have released their associations and nothing of it arrived for
        so long.
    longest_open_seconds : float
        A study is complete after so much silence even if an association stays open.
    operating_point : str or None
        Of the bundle; its default if not given.
    """

    workers: int | None = Field(default=None, ge=1, le=256)
    seconds: Seconds = 30.0
    memory_mb: int = Field(default=1024, ge=128)
    tries: int = Field(default=3, ge=1, le=10)
    quiet_seconds: float = Field(default=0.5, ge=0, le=3600)
    longest_open_seconds: float = Field(default=10.0, ge=0, le=3600)
    operating_point: str | None = None


class PriorityConfig(Strict):
    """Order of the worklist. A priority may be raised, never lowered.

    Parameters
    ----------
    positive : {"routine", "high", "urgent"}
        That a study gets at least if an image of it is positive.
    longest_wait_minutes : float
        A study that has waited for so long comes first, whatever the priority of others.
    """

    positive: Level = "high"
    longest_wait_minutes: float = Field(default=30.0, gt=0)


class RetryConfig(Strict):
    """When an object is sent again.

    Parameters
    ----------
    first_seconds : float
        Pause after the first failure; it doubles with each further one.
    longest_seconds : float
        Longest pause.
    tries : int
        After so many failures in a row the object is on the dead-letter list. A destination that cannot be
        reached at all does not count: its objects wait.
    settle_seconds : float
        Pause before a destination is asked for objects whose sending was cut off, so that it can finish
        what it had received.
    """

    first_seconds: Seconds = 2.0
    longest_seconds: Seconds = 600.0
    tries: int = Field(default=20, ge=1, le=1000)
    settle_seconds: float = Field(default=2.0, ge=0, le=600)


class FolderConfig(Strict):
    """A folder that is watched for DICOM files.

    Parameters
    ----------
    path : Path
    done : Path or None
        Where a file is moved once it is stored and journalled; None to delete it.
    bad : Path
        Where files go that are no DICOM file.
    every_seconds : float
    name : str
        In place of a calling AE title, for rules.
    """

    path: Path
    done: Path | None = None
    bad: Path
    every_seconds: Seconds = 2.0
    name: AeTitle = "FOLDER"

    @model_validator(mode="after")
    def _apart(self) -> FolderConfig:
        # What is in `done` and `bad` is not taken, so that nothing of the folder would be.
        if any(one is not None and self.path.is_relative_to(one) for one in (self.done, self.bad)):
            raise ValueError("'path' is, or lies in, 'done' or 'bad'; give these two folders of their own")
        return self


class PullConfig(Strict):
    """A DICOMweb server that is asked for new images (QIDO-RS) which are then fetched (WADO-RS).

    Parameters
    ----------
    name : str
        In place of a calling AE title, for rules.
    url : str
        Root, such as ``https://pacs.example/dicom-web``.
    modalities : tuple of str
    days : int
        Studies of the last so many days; 1 is today.
    every_seconds : float
    tls, token_file, password_file, timeout
        As for a destination.
    """

    name: AeTitle
    url: WebAddress = Field(pattern=r"^https?://")
    modalities: tuple[str, ...] = ("CR", "DX", "RG")
    days: int = Field(default=2, ge=1, le=3650)
    every_seconds: Seconds = 30.0
    tls: TlsClientConfig | None = None
    token_file: Path | None = None
    password_file: Path | None = None
    timeout: Seconds = 30.0

    @model_validator(mode="after")
    def _complete(self) -> PullConfig:
        _check_tls(self.url, self.tls)
        return self


class MetricsConfig(Strict):
    """Where Prometheus metrics are served; nowhere if the port is None."""

    host: str = "127.0.0.1"
    port: Port | None = 9112


class ResultsConfig(Strict):
    """Which objects are made; see `pneumoscope.serve.dicom.contracts.ResultOptions`."""

    structured_report: bool = True
    secondary_capture: bool = True
    presentation_state: bool = False
    rejections: Literal["secondary_capture", "structured_report", "both", "none"] = "both"
    institution: str = Field(default="", max_length=64)
    series_number: int = Field(default=9000, ge=1, le=2_000_000_000)
