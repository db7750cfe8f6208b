/** An error that the server told of, or would have: what cannot stand in a path is not sent. `code` is stable, `message` for people, `details` for programs. */
export declare class OutriderError extends Error {
  readonly status: number;
  readonly code: string;
  readonly details: unknown;
  readonly requestId: string | null;
}

/** The server could not be reached (`server_unreachable`), or what answered is no server of Outrider (`server_foreign`). */
export declare class ServerError extends Error {
  readonly code: "server_unreachable" | "server_foreign";
}

export interface Settings {
  /** An API key. */
  key?: string;
  /** How many milliseconds a server that does not answer is waited for. */
  patience?: number;
  /** How many milliseconds a stream may say nothing until it is taken for dead and resumed. */
  silence?: number;
  fetch?: typeof globalThis.fetch;
}

export interface Asked {
  signal?: AbortSignal;
  headers?: Record<string, string>;
}

/** An event of a stream. After `id` the stream can be gone on with. */
export interface StreamEvent<T = unknown> {
  event: string;
  id: number;
  data: T;
}

export declare function newId(noun: string): string;

export declare class Transport {
  constructor(url: string | URL, settings?: Settings);
  readonly url: string;
}
