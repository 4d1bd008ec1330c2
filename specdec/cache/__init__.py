"""What sequences keep between rounds: pages, the prefix index, the K/V pool."""
