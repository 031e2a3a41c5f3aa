"""The oracle for images: batches of mixed requests, held against the trainers' own merges."""
