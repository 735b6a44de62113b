// One WebSocket for the page: it reconnects by itself and watches again from where each reader is.

import { pauseAfter } from "./pause.js";

export const PROTOCOL = 1; // chats/frames.py has the server's
const CALM = 19_000; // two heartbeats and a second
const readers = new Map(); // generation id → () => ({epoch, seq})
const listeners = new Map(); // frame type → functions
let watchedChat = null; // () => ({chat, version})
let socket = null;
let attempts = 0;
let timer = null;
let watchdog = null;
let isTooOld = false; // for the server: until it is loaded anew, the page comes back ever less often

export function on(type, listener) {
  listeners.set(type, [...(listeners.get(type) ?? []), listener]);
}

function emit(type, frame = {}) {
  for (const listener of listeners.get(type) ?? []) listener(frame);
}

export function watch(generation, position) {
  readers.set(generation, position);
  sendWatch(generation);
}

export function unwatch(generation) {
  if (readers.delete(generation)) send({ type: "unwatch", generation });
}

export function watchChat(position) {
  watchedChat = position;
  sendChat();
}

export function sendWatch(generation) {
  const position = readers.get(generation)?.();
  if (position) send({ type: "watch", generation, epoch: position.epoch, after: position.seq });
}

function sendChat() {
  if (watchedChat) send({ type: "watch_chat", ...watchedChat() });
}

function send(frame) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(frame));
}

export function connect() {
  clearTimeout(timer);
  if (socket && socket.readyState <= WebSocket.OPEN) return;
  const url = new URL(`/ws/?protocol=${PROTOCOL}`, location.href);
  url.protocol = url.protocol.replace("http", "ws");
  socket = new WebSocket(url);
  socket.addEventListener("open", opened);
  socket.addEventListener("message", received);
  socket.addEventListener("close", closed);
  guard();
}

function opened() {
  emit("online");
  sendChat();
  for (const generation of readers.keys()) sendWatch(generation);
}

function received(event) {
  if (event.target !== socket) return;
  guard();
  const frame = JSON.parse(event.data);
  if (frame.type === "hello") isTooOld = frame.protocol > PROTOCOL;
  if (!isTooOld) attempts = 0;
  emit(frame.type, frame);
}

// Nothing for so long, not even a heartbeat: the line is dead even if nobody said so.
function guard() {
  clearTimeout(watchdog);
  watchdog = setTimeout(() => {
    socket?.close();
    closed({ target: socket, code: 1006 });
  }, CALM);
}

function closed(event) {
  if (event.target !== socket) return;
  clearTimeout(watchdog);
  socket = null;
  emit("offline");
  if (event.code === 4401) return emit("session over");
  if (event.code === 4403) return;
  timer = setTimeout(connect, pauseAfter(attempts++));
}

function connectSoon() {
  if (!socket && document.visibilityState === "visible" && timer) connect();
}

addEventListener("online", connectSoon);
addEventListener("focus", connectSoon);
document.addEventListener("visibilitychange", connectSoon);
