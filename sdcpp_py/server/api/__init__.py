"""The APIs: a file for each, thin over the scheduler."""
