"""From a picture to an answer: prediction, contact sheets, models prepared for inference."""
