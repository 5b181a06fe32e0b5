"""State machines that the whole is compared with."""
