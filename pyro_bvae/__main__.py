"""``python -m pyro_bvae``: the command ``pyro-bvae``."""

from .cli.main import main

if __name__ == "__main__":
    main()
