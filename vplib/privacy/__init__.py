"""What a mechanism spends, and how it is said."""
