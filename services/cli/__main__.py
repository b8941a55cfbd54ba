"""Entry point of the `similis` command; handles Ctrl-C also while modules are still being imported."""


def main() -> None:
    """Run the command line of this process and exit with its code."""
    try:
        from services.cli.main import main as run

        run()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
