const bar = document.getElementById("bar");
const message = document.getElementById("message");

function show(task) {
  if (task.percent !== null) bar.value = task.percent;
  message.textContent = task.ended ? task.status : task.message || task.status;
}

function follow(token) {
  const url = "/progress/" + token;
  const source = new EventSource(url);
  source.addEventListener("progress", (event) => show(JSON.parse(event.data)));
  source.addEventListener("end", (event) => {
    source.close();
    show(JSON.parse(event.data));
  });
  source.addEventListener("away", (event) => {
    message.textContent = JSON.parse(event.data).error;
  });
  source.addEventListener("error", () => {
    // A lost connection is made again; after an answer that is no stream it is not.
    if (source.readyState === EventSource.CLOSED) poll(url);
  });
}

async function poll(url) {
  try {
    const response = await fetch(url);
    const answer = await response.json();
    if (response.ok) show(answer);
    else message.textContent = answer.error;
    if (answer.ended || response.status === 401 || response.status === 403) return;
  } catch {
    message.textContent = "The server does not answer.";
  }
  setTimeout(poll, 2000, url);
}

document.getElementById("start").addEventListener("click", async () => {
  const response = await fetch("/start", { method: "POST" });
  if (response.ok) follow((await response.json()).token);
  else message.textContent = "The task was not started.";
});
