"""Offline checks of deploy/ and of what CI installs: nothing is pulled, built or started but one service."""
