"""The rows of the changelog in numpy columns: what front ends and the second stage read them by, a batch at a time."""
