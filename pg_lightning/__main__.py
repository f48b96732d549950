"""`python -m pg_lightning fit --config …`."""

from pg_lightning.cli import main

if __name__ == "__main__":
    main()
