"""``python -m pyro_bvae.cli``."""

from .main import main

if __name__ == "__main__":
    main()
