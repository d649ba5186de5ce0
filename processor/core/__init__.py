"""Pure logic: no await, no clock, no environment, no framework. Time is an argument, money is an integer."""
