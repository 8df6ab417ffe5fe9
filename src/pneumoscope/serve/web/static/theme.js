// A classic script in the head: the theme must be set before the first paint, and modules run later.
// The theme is the only value that this page stores in the browser.
(() => {
  const KEY = "pneumoscope-theme";
  const ORDER = ["auto", "light", "dark"];

  function stored() {
    try {
      const value = localStorage.getItem(KEY);
      return ORDER.includes(value) ? value : "auto";
    } catch {
      return "auto"; // storage is disabled
    }
  }

  function apply(theme) {
    document.documentElement.dataset.theme = theme;
    const button = document.getElementById("theme");
    if (button) button.textContent = `Theme: ${theme}`;
  }

  function next() {
    const theme = ORDER[(ORDER.indexOf(document.documentElement.dataset.theme) + 1) % ORDER.length];
    apply(theme);
    try {
      localStorage.setItem(KEY, theme);
    } catch {
      // Without storage it lasts until the page is closed.
    }
  }

  apply(stored());
  document.addEventListener("DOMContentLoaded", () => {
    apply(document.documentElement.dataset.theme);
    document.getElementById("theme").addEventListener("click", next);
  });
})();
