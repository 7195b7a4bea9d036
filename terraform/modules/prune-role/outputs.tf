output "role_arn" {
  description = "The role's ARN."
  value       = aws_iam_role.prune.arn
}

output "role_name" {
  description = "The role's name, for further policies."
  value       = aws_iam_role.prune.name
}

output "instance_profile" {
  description = "The name of the instance profile for the host that prunes."
  value       = aws_iam_instance_profile.prune.name
}
