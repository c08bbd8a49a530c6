// What the server of this page answers to requests with the token.

/** An error in the server's words; `gone` if the page's server or the platform behind it is: the banner says that. */
export class ApiError extends Error {
  constructor(message, gone = false, kind = "") {
    super(message);
    Object.assign(this, { gone, kind });
    if (gone) document.dispatchEvent(new Event("gone"));
  }

  /** The text for a view, which does not repeat the banner. */
  get text() { return this.gone ? "" : this.message; }
}

/** Return the response; throws an `ApiError` with the server's own words. */
async function send(path, given, options) {
  const all = Object.entries(given).flatMap(([name, value]) => [value].flat().map((each) => [name, each]));
  const query = new URLSearchParams(all.filter(([, value]) => value !== null && value !== undefined && value !== ""));
  let response;
  try {
    response = await fetch(`${path}${query.size ? `?${query}` : ""}`, { ...options, headers: { authorization: `Bearer ${sessionStorage.getItem("token")}` } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The page's server does not answer: is `segserve ui` still running?", true);
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  throw new ApiError(body.error ?? `the page's server answered ${response.status}`, body.gone, body.kind);
}

export const get = async (path, given = {}) => (await send(path, given, {})).json();
export const getBlob = async (path, given = {}) => (await send(path, given, {})).blob();
/** Return a file and its name. */
export async function getFile(path, given) {
  const response = await send(path, given, {});
  return [await response.blob(), /filename="(.*)"/.exec(response.headers.get("content-disposition"))[1]];
}
export const post = (path, given = {}, body = undefined, signal = undefined) => send(path, given, { method: "POST", body, signal });
