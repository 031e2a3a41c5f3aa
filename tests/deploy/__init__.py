"""What is in ``deploy``, rendered, validated and run."""
