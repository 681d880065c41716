"""A task small enough to train in a test: linear regression with noise."""

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from configs import common
from star_jax.data.position import ALL_ROWS

WIDTH = 4


class Batches:
  """A pure function of the position, as every source of batches is."""

  def __init__(self, batch_size, seed, rows=ALL_ROWS):
    self.batch_size, self.seed, self.position = batch_size, seed, 0
    self.rows = rows

  def __next__(self):
    rng = np.random.default_rng((self.seed, self.position))
    self.position += 1
    x = rng.standard_normal((self.batch_size, WIDTH)).astype(np.float32)
    return {"x": x[self.rows], "y": x.sum(axis=1)[self.rows]}

  def get_state(self):
    return {"position": self.position}

  def set_state(self, state):
    self.position = state["position"]


class FakeTask:
  """`task.Task`; `nan_at` poisons the losses of these 0-based steps."""

  frozen: dict = {}  # noqa: RUF012
  width_ratio = 1.0

  def __init__(self, config, nan_at=(), on_step=None):
    self.config = config
    self.nan_at = np.asarray(nan_at, np.int32)
    self.on_step = on_step
    self.maintain_every = 1 if on_step else 0
    self.width = WIDTH

  def identity(self):
    return {"stage": "fake", "model": {"width": self.width}}

  def check_mesh(self, mesh):
    return ""

  def init(self, key):
    params = {"head": {"kernel": jax.random.normal(key, (self.width, 1))}}
    return params, {"seen": jnp.zeros(())}

  def loss_at(self, step):
    return self.loss

  def loss(self, params, extra, frozen, batch, key, step):
    train = step is not None
    noise = 0.1 * jax.random.normal(key, batch["y"].shape) if train else 0.0
    error = (batch["x"] @ params["head"]["kernel"])[:, 0] - batch["y"] + noise
    loss = jnp.mean(jnp.square(error))
    if train:
      loss *= jnp.where(jnp.isin(step, self.nan_at), jnp.nan, 1.0)
    metrics = {"loss": loss, "loss_k": jnp.stack([loss, 2 * loss])}
    if train:
      extra = {"seen": extra["seen"] + 1}
    return loss, (metrics, extra)

  def train_batches(self, rows=ALL_ROWS):
    return Batches(self.config.batch_size, self.config.seed, rows)

  def eval_batches(self):
    batches = Batches(self.config.batch_size, 10_000)
    return [next(batches) for _ in range(self.config.eval_batches)]

  def start(self, state, batches):
    # Draws a batch, so that the loop has something to put back.
    next(batches)
    return state

  def maintain(self, state, batch, key):
    self.on_step(int(state.step))
    return state

  def pictures(self, state):
    shade = int(abs(float(state.params["head"]["kernel"][0, 0])) * 10) % 256
    return {"shade": Image.new("RGB", (4, 4), (shade, 0, 0))}

  def export(self, state, workdir):
    path = workdir / "exported.npy"
    np.save(path, np.asarray(state.eval_params["head"]["kernel"]))
    return path


def config(**changes):
  """Eight steps, every one logged, a checkpoint every third."""
  c = common.training("fake")
  c.update(
    batch_size=4,
    num_steps=8,
    log_every=1,
    eval_every=4,
    eval_batches=1,
    sample_every=0,
    checkpoint_every=3,
  )
  c.optimizer.update(warmup_steps=2, learning_rate=0.1, ema_decay=0.9)
  c.mesh.data = 1
  c.update(changes)
  return c
