output "role_arn" {
  description = "The role's ARN."
  value       = aws_iam_role.agent.arn
}

output "role_name" {
  description = "The role's name, for further policies."
  value       = aws_iam_role.agent.name
}

output "instance_profile" {
  description = "The name of the instance profile for the database nodes."
  value       = aws_iam_instance_profile.agent.name
}
