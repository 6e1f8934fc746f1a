// The socket to `streampose view`: connects, comes back by itself, and asks for the pictures that are shown.

const RETRY_MS = [250, 500, 1000, 2000];

export class Link {
  #socket = null;
  #tries = 0;
  #looks = "";

  /** Calls onNews({link, cameras}), onPicture(source, frameIndex, blob) and onState("live" | "lost" | "refused" | "full"). */
  constructor({ onNews, onPicture, onState }) {
    this.onNews = onNews;
    this.onPicture = onPicture;
    this.onState = onState;
    this.#connect();
  }

  /** Asks for the pictures of these cameras, and no others. */
  look(sources) {
    const looks = JSON.stringify({ look: [...sources].sort() });
    if (looks === this.#looks) return;
    this.#looks = looks;
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(looks);
  }

  #connect() {
    const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/stream`);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      this.#tries = 0;
      this.onState("live");
      if (this.#looks) socket.send(this.#looks);
    };
    socket.onmessage = ({ data }) => (typeof data === "string" ? this.onNews(JSON.parse(data)) : this.#picture(data));
    socket.onclose = ({ code }) => {
      this.onState({ 4403: "refused", 1013: "full" }[code] ?? "lost");
      setTimeout(() => this.#connect(), RETRY_MS[Math.min(this.#tries++, RETRY_MS.length - 1)]);
    };
    this.#socket = socket;
  }

  #picture(data) {
    const length = new DataView(data).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
    this.onPicture(header.source, header.frame_index, new Blob([new Uint8Array(data, 4 + length)], { type: "image/jpeg" }));
  }
}
