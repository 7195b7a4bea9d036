output "role_arn" {
  description = "The role's ARN."
  value       = aws_iam_role.recovery.arn
}

output "role_name" {
  description = "The role's name, for further policies."
  value       = aws_iam_role.recovery.name
}

output "instance_profile" {
  description = "The name of the instance profile for the DR instance while it recovers."
  value       = aws_iam_instance_profile.recovery.name
}
