"""Proto to domain and back, and nothing else."""
