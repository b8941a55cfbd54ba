"""Where the `similis` command begins: Ctrl-C may come while the rest is still loading."""


def main() -> None:
    """Run the command line of this process; ends it with its exit code."""
    try:
        from services.cli.main import main as run

        run()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
