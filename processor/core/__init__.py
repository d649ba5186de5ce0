"""Pure logic: no await, clock, environment or framework; time is an argument. May import no other package of ours."""
