"""`python -m moat_kv_cli` is `moat`."""

from moat_kv_cli import main

if __name__ == "__main__":
    main.main()
