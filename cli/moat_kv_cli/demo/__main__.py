"""`python -m moat_kv_cli.demo`."""

from moat_kv_cli.demo import play

if __name__ == "__main__":
    play.main()
