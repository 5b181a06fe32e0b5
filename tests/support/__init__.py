"""What tests are made with: builders, a clock, databases, servers."""
