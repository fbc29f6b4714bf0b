"""Why a training stopped, and what is left of it, as one sentence."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager

from .build import is_out_of_memory
from .checkpoint import Checkpoints
from .config import Config


@contextmanager
def said_why(writer: Checkpoints, config: Config) -> Iterator[None]:
    """What is left, beside each reason for which a training may stop."""
    trust = " --trust" if ":" in f"{config.prior}{config.network}" else ""
    again = f"Go on with: pyro-bvae train --resume {shlex.quote(str(writer.path))}{trust}."
    try:
        with enough_memory(config):
            yield
    except FloatingPointError as error:
        raise FloatingPointError(f"{error} {writer.kept()}") from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Interrupted. {writer.kept()} {again}") from None
    except MemoryError as error:
        raise MemoryError(f"{error} {writer.kept()}") from error
    except OSError as error:
        raise OSError(f"{error} {writer.kept()} {again}") from error
    except ValueError as error:  # a file of the data that has vanished, or is damaged
        said = " ".join(str(error).split())
        if said.startswith("Expected parameter"):  # of a distribution, says torch at length
            raise FloatingPointError(
                "train: the model's distributions must be finite; on held-out data they are not. Lower "
                f"the learning rate, or check the data's range. {writer.kept()}"
            ) from error
        raise ValueError(f"{said} {writer.kept()}") from error
    finally:
        writer.close()


@contextmanager
def enough_memory(config: Config) -> Iterator[None]:
    """Memory that does not suffice, on whichever device, as one sentence."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[:1] or ["none left"]
        if not is_out_of_memory(error):
            raise
        smaller = {"--batch-size": config.batch_size, "--latent-dim": config.latent_dim}
        if config.n_particles > 1:
            smaller["--n-particles"] = config.n_particles
        if config.image_size is not None:
            smaller["--image-size"] = config.image_size
        options = " or ".join(f"{name} (now {v})" if v else name for name, v in smaller.items())
        raise MemoryError(
            f"train: a step must fit into memory; got: {reason[0][:200].rstrip('.')}. Lower {options}."
        ) from error
