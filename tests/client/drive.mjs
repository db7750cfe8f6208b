// Drives a server with the TypeScript client, and prints what came of it.
const [, , source, url] = process.argv;
const { Outrider, OutriderError, ServerError } = await import(source);

const outrider = new Outrider(url, { patience: 20000 });
const session = await outrider.createSession({ title: "from node" });
const task = await outrider.createTask(session.id, { kind: "background_tool", spec: { tool: "consult", arguments: {} } });

const types = [];
let answered = false;
for await (const event of outrider.taskEvents(task.id, { after: 0 })) {
  types.push(event.event);
  const asked = event.data.task?.input_request;
  if (asked && !answered) {
    answered = true;
    await outrider.answerTask(task.id, { answer: "yes – ünïcode", request_id: asked.id, by: "node" });
  }
}
const result = await outrider.getResult(task.id);

await outrider.uploadFile(session.id, "a b/ü?.txt", "text");
const file = new TextDecoder().decode(await outrider.downloadFile(session.id, "a b/ü?.txt"));

let problem;
try {
  await outrider.getTask("task_none");
} catch (error) {
  problem = { kind: error instanceof OutriderError, status: error.status, code: error.code, details: error.details };
}
let away;
try {
  await new Outrider("http://127.0.0.1:1", { patience: 50 }).listWorkers();
} catch (error) {
  away = { kind: error instanceof ServerError, code: error.code };
}

const stop = new AbortController();
let first;
try {
  for await (const event of outrider.sessionEvents(session.id, { signal: stop.signal })) {
    first = event.event;
    stop.abort();
  }
} catch (error) {
  if (!stop.signal.aborted) throw error;
}
const listed = await outrider.listTasks({ state: ["succeeded"], label: [], limit: 5 });
console.log(JSON.stringify({ types, result, file, problem, away, first, listed: listed.items.map((each) => each.id) }));
