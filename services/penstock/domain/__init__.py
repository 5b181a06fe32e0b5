"""What things are and may become: plain functions on frozen values, without database, network or clock."""
