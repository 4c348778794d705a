pub mod json;
pub mod topic;
