// Jobs as the page knows them: asked for, followed by their events, cancelled.

import { events, get, post, request } from "./api.js";

const ENDED = new Set(["done", "failed", "cancelled"]);
const RETRY = 1000; // milliseconds between two attempts at a connection that was lost

/** Whether a job has ended. */
export const isOver = (job) => ENDED.has(job.state);

/** Ask for a job. */
export const submit = (asked) => post("/api/jobs", asked);

/** Cancel a job. */
export const cancel = (job) => post(`/api/jobs/${job.id}/cancel`);

/** Return a picture that went into a job, as a file. */
export async function inputOf(job, number) {
  const blob = await (await request(`/api/jobs/${job.id}/inputs/${number}`)).blob();
  return new File([blob], `picture ${number + 1}`, { type: blob.type });
}

const pause = (signal) =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, RETRY);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()));
  });

/**
 * Follow a job until it ends, over lost connections too.
 *
 * @param told takes the job, and the event of progress where there is one.
 */
export async function follow(id, signal, told) {
  while (!signal.aborted) {
    try {
      for await (const { kind, data } of events(`/api/jobs/${id}/events`, signal)) {
        if (kind === "progress") told(null, data);
        else if (data.id) {
          told(data, null);
          if (isOver(data)) return;
        }
      }
      const job = await get(`/api/jobs/${id}`);
      if (isOver(job)) return told(job, null);
    } catch (error) {
      if (error.name === "AbortError" || error.status === 404) return;
    }
    await pause(signal);
  }
}

/**
 * Follow what happens to all jobs.
 *
 * @param told takes a job.
 * @param missed is called when a connection is there again: some may have been missed.
 */
export async function followAll(signal, told, missed) {
  let isFirst = true;
  while (!signal.aborted) {
    try {
      for await (const { kind, data } of events("/api/events?after=-1", signal)) {
        if (kind === "open" && !isFirst) missed();
        if (kind === "open") isFirst = false;
        if (data.id) told(data);
      }
    } catch (error) {
      if (error.name === "AbortError") return;
    }
    await pause(signal);
  }
}

/** Return what a job under way does, in words. */
export function phaseText(job, progress) {
  if (job.state === "queued") return job.position > 1 ? `Queued, ${job.position - 1} before it` : "Queued";
  if (job.state === "loading" || !progress) return job.state === "loading" ? "Loading the model" : "Starting";
  const names = {
    text: "Reading the prompt",
    encoding: "Reading pictures",
    sampling: "Sampling",
    decoding: "Decoding",
    upscaling: "Enlarging",
    done: "Finishing",
  };
  const said = [names[progress.phase] ?? progress.phase];
  if (progress.steps) said.push(`${progress.step} of ${progress.steps}`);
  const which =
    progress.pictures > 1 && progress.picture ? `, picture ${progress.picture} of ${progress.pictures}` : "";
  return `${said.join(" ")}${which}`;
}
