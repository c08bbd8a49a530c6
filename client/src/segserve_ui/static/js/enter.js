// Takes the token out of the address, before anything can be clicked, and keeps it for this tab. Other ports never get it.

function enter() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token === null) return false;
  sessionStorage.setItem("token", token);
  history.replaceState(null, "", "/");
  return true;
}

enter();
window.addEventListener("hashchange", () => { if (enter()) location.reload(); });
