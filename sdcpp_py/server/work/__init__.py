"""What a worker process does: it holds models, draws one job after the other, and may die without harm to others."""
