//! The API server, its reconcilers and the planner's execution.
