// Asks for what must never be sent, counts what was, and prints what came of it.
const [, , source] = process.argv;
const { Outrider, OutriderError } = await import(source);

const sent = [];
const fetch = async (url) => {
  sent.push(new URL(url).pathname);
  return Response.json({});
};
const outrider = new Outrider("http://server", { fetch });

async function codeOf(asked) {
  try {
    await asked();
  } catch (error) {
    return error instanceof OutriderError ? error.code : `${error}`;
  }
  return "sent";
}

const away = [".", "..", "%2e", "%2E%2e", ".%2e", "%2e.", "", undefined, null, "\ud800"];
const ids = new Set();
for (const id of away) {
  for (const asked of [
    () => outrider.getTask(id),
    () => outrider.deleteSession(id),
    () => outrider.deleteFile(id, "a"),
    () => outrider.taskEvents(id).next(),
    () => outrider.stopAttempt("task_1", id, {}),
  ]) {
    ids.add(await codeOf(asked));
  }
}
const paths = new Set();
for (const each of [...away, "/", "../../innocent", "/a/../b", "a/%2e%2E/b", "a//b", "a/./b", "a/.."]) {
  paths.add(await codeOf(() => outrider.deleteFile("mine", each)));
  paths.add(await codeOf(() => outrider.uploadFile("mine", each, "text")));
}
const refused = sent.length;
for (const each of ["/a/..b", "...", "%2f", "a\\..\\b", "a/%25"]) await outrider.deleteFile("mine", each);
await outrider.getTask("../x");
console.log(JSON.stringify({ ids: [...ids], paths: [...paths], refused, sent }));
