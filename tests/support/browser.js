// The browser of a page with a button, a bar and a message: prints each change of these as JSON.
// Usage: node --experimental-eventsource browser.js SCRIPT BASE streams|polls
const fs = require("fs");
const [script, base, way] = process.argv.slice(2);
const element = (id) => new Proxy({}, {
  set(target, name, value) {
    target[name] = value;
    console.log(JSON.stringify([id, name, value]));
    return true;
  },
});
const start = { addEventListener: (_, run) => { start.click = run; } };
const elements = { start, bar: element("bar"), message: element("message") };
const absolute = (url) => new URL(url, base).href;
const Source = EventSource;
const get = fetch;

global.document = { getElementById: (id) => elements[id] };
class Streams extends Source {
  constructor(url) { super(absolute(url)); }
}
class Refused {
  static CLOSED = 2;
  readyState = 2;
  addEventListener(name, run) { if (name === "error") setTimeout(run); }
}
global.EventSource = way === "streams" ? Streams : Refused;
global.fetch = (url, options) => get(absolute(url), options);
(0, eval)(fs.readFileSync(script, "utf8"));
start.click();
