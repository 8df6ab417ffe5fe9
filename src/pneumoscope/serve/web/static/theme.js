// A classic script in the head: the theme must stand before the first paint, and modules run later.
// The theme is the only thing that this page keeps in the browser.
(() => {
  const KEY = "pneumoscope-theme";
  const ORDER = ["auto", "light", "dark"];

  function kept() {
    try {
      const value = localStorage.getItem(KEY);
      return ORDER.includes(value) ? value : "auto";
    } catch {
      return "auto"; // storage is switched off
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
      // It holds until the page is closed, then.
    }
  }

  apply(kept());
  document.addEventListener("DOMContentLoaded", () => {
    apply(document.documentElement.dataset.theme);
    document.getElementById("theme").addEventListener("click", next);
  });
})();
