"""What every training loop needs: batches, learning-rate schedules, gradient steps, and a guard against
collapse."""
