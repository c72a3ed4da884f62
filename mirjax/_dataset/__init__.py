"""Metrics of whole data sets, held in memory or streamed, exact or estimated with bounds."""
