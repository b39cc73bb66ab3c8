"""Ray, as driver and workers both ask it. Imports Ray and plain modules only."""
