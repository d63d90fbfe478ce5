"""Callbacks for `fit`."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from deel_like_lip.renormalization import renormalize


class RenormalizeCallback(keras.callbacks.Callback):
    """Projects the constrained kernels back after each training step.

    Also before every validation, at the end of each epoch and at the end of training, where Keras may have put averages
    in place of the kernels (`use_ema`, `SwapEMAWeights`), which no layer sees. The layers project their kernels by
    themselves right after each update of a Keras optimizer; the callback covers whatever else changes weights during
    `fit`. Put it last in the list, so that it comes after those callbacks.

    Args:
        every: Number of training steps from one projection to the next. With `steps_per_execution` Keras calls
            callbacks once for several steps; the projection then follows the first call at which it is due.

    Example:
        >>> model.fit(x, y, callbacks=[RenormalizeCallback()])

    Raises:
        ValueError: If `every` is not a positive integer.
    """

    def __init__(self, every: int = 1) -> None:
        super().__init__()
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(
                "Invalid value for argument `every` of RenormalizeCallback. Expected a positive integer. "
                f"Received: every={every}"
            )
        self.every = every
        self._next_batch = 0
        self._steps = 0
        self._due = False

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._next_batch = 0

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self._due:
            self._renormalize()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._steps += batch + 1 - self._next_batch
        self._next_batch = batch + 1
        if self._steps < self.every:
            return
        # A callback that was passed without a list is called from other threads here, on JAX and torch, while the main
        # thread goes on to the next step. That step's begin is always announced by the main thread: projecting waits
        # for it.
        self._due = True
        if threading.current_thread() is threading.main_thread():
            self._renormalize()

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._renormalize()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._renormalize()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._renormalize()

    def _renormalize(self) -> None:
        self._due = False
        self._steps = 0
        renormalize(self.model)


class LossParamScheduler(keras.callbacks.Callback):
    """Changes a parameter of the loss, such as `alpha`, `min_margin` or `tau`, at the beginning of each epoch.

    Every loss of the model that has a parameter of that name is changed. On JAX a change costs a compilation of the
    training step, once an epoch in which the value differs; on TensorFlow and torch it costs nothing.

    Give either a schedule, a function of the epoch, or `fp` and `xp`, values at optimizer steps between which the
    parameter is interpolated linearly.

    Args:
        param_name: Name of the parameter.
        fp: Values of the parameter.
        xp: Increasing optimizer steps at which it has these values, as many as `fp`.
        step: The optimizer step at which training begins.
        schedule: Function from the epoch, counted from 0, to the value.

    Example:
        >>> LossParamScheduler("alpha", schedule=lambda epoch: 10.0 * 2**epoch)
        >>> LossParamScheduler("tau", fp=[100.0, 10.0], xp=[0, 5000])

    Raises:
        ValueError: If the arguments do not define a schedule, or no loss of the model has such a parameter.
    """

    def __init__(
        self,
        param_name: str,
        fp: Sequence[float] | None = None,
        xp: Sequence[float] | None = None,
        step: int = 0,
        schedule: Callable[[int], float] | None = None,
    ) -> None:
        super().__init__()
        if (fp is None) != (xp is None) or (fp is None) == (schedule is None):
            raise ValueError(
                "LossParamScheduler expects either `schedule`, or `fp` and `xp`. "
                f"Received: fp={fp}, xp={xp}, schedule={schedule}"
            )
        steps, values = np.asarray(() if xp is None else xp), np.asarray(() if fp is None else fp)
        if schedule is None and (not steps.size or steps.shape != values.shape or np.any(np.diff(steps) <= 0)):
            raise ValueError(
                "LossParamScheduler expects as many values `fp` as steps `xp`, at least one, with `xp` increasing. "
                f"Received: fp={fp}, xp={xp}"
            )
        self.param_name = param_name
        self.step = step
        self.schedule = schedule
        self._points = steps, values
        self._first_iteration: int | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if not self._losses():
            names = sorted({name for loss in self._all_losses() for name in getattr(loss, "parameter_variables", ())})
            raise ValueError(
                f"No loss of the model has a parameter '{self.param_name}' that can be scheduled. Expected one of "
                f"{names}. Received: param_name={self.param_name}"
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        model = self.model
        value = self._value(epoch, int(keras.ops.convert_to_numpy(model.optimizer.iterations)))
        changed = [loss for loss in self._losses() if getattr(loss, self.param_name) != np.float32(value)]
        for loss in changed:
            setattr(loss, self.param_name, value)
        if changed and keras.backend.backend() == "jax":
            model.make_train_function(force=True)
            model.test_function = None

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if logs is not None:
            logs[self.param_name] = getattr(self._losses()[0], self.param_name)

    def _value(self, epoch: int, iteration: int) -> float:
        if self.schedule is not None:
            return float(self.schedule(epoch))
        if self._first_iteration is None:
            self._first_iteration = iteration
        return float(np.interp(self.step + iteration - self._first_iteration, *self._points))

    def _losses(self) -> list[Any]:
        return [loss for loss in self._all_losses() if self.param_name in getattr(loss, "parameter_variables", ())]

    def _all_losses(self) -> list[Any]:
        return list(keras.tree.flatten(self.model.loss))
