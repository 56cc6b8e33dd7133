// The visitor's camera: opened when asked for, closed when no longer needed.

const WORDS = {
  NotAllowedError: "The browser was not allowed to use the camera. Allow it for this page and try again.",
  NotFoundError: "This device has no camera.",
  OverconstrainedError: "This device has no such camera.",
  NotReadableError: "The camera is in use by another program.",
};

/** Why there is no camera, in words. */
export class CameraError extends Error {}

/** A camera that is on. */
export class Camera {
  #stream;
  #video;
  #canvas = document.createElement("canvas");
  // Read back for each frame, which a canvas in the memory of the graphics card makes slow.
  #context = this.#canvas.getContext("2d", { willReadFrequently: true });

  constructor(stream, video) {
    this.#stream = stream;
    this.#video = video;
  }

  /**
   * Turn a camera on.
   * @param {HTMLVideoElement} video Where it is shown.
   * @param {"user"|"environment"} facing The one to the visitor, or the one away.
   * @throws {CameraError}
   */
  static async open(video, facing = "user") {
    if (!navigator.mediaDevices?.getUserMedia) {
      throw new CameraError("Browsers give the camera to pages over https or from this computer only.");
    }
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({
        audio: false,
        video: { facingMode: facing, width: { ideal: 1280 }, height: { ideal: 720 } },
      });
    } catch (error) {
      throw new CameraError(WORDS[error.name] ?? `The camera cannot be used: ${error.message}`);
    }
    video.srcObject = stream;
    video.classList.toggle("mirrored", facing === "user");
    await video.play();
    return new Camera(stream, video);
  }

  /** Width and height of its pictures in pixels. */
  get size() {
    return [this.#video.videoWidth, this.#video.videoHeight];
  }

  /** Call once when it ends by itself, as when it is unplugged. */
  onEnd(listener) {
    this.#stream.getVideoTracks()[0].addEventListener("ended", listener, { once: true });
  }

  /** Turn it off. */
  close() {
    for (const track of this.#stream.getTracks()) track.stop();
    this.#video.srcObject = null;
  }

  /**
   * The picture it sees now, as a JPEG file; never mirrored.
   * @returns {Promise<Blob>}
   */
  async picture() {
    const canvas = this.#drawn(Infinity);
    return new Promise((resolve, reject) => {
      canvas.toBlob(
        (blob) => (blob ? resolve(blob) : reject(new CameraError("The camera's picture cannot be taken."))),
        "image/jpeg",
        0.92,
      );
    });
  }

  /**
   * One of many pictures, as a JPEG in base64. At once: a browser may put `toBlob` off by a second.
   * @param {number} longest Longest side in pixels.
   */
  frame(longest) {
    const text = this.#drawn(longest).toDataURL("image/jpeg", 0.85);
    return text.slice(text.indexOf(",") + 1);
  }

  #drawn(longest) {
    const [width, height] = this.size;
    if (!width || !height) throw new CameraError("The camera shows no picture yet.");
    const factor = Math.min(1, longest / Math.max(width, height));
    this.#canvas.width = Math.round(width * factor);
    this.#canvas.height = Math.round(height * factor);
    this.#context.drawImage(this.#video, 0, 0, this.#canvas.width, this.#canvas.height);
    return this.#canvas;
  }
}

/** Whether there is more than one camera to choose from. */
export async function hasSeveralCameras() {
  const devices = await navigator.mediaDevices.enumerateDevices();
  return devices.filter((device) => device.kind === "videoinput").length > 1;
}
