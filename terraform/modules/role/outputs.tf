output "role_arn" {
  description = "The role's ARN."
  value       = aws_iam_role.this.arn
}

output "role_name" {
  description = "The role's name, for further policies."
  value       = aws_iam_role.this.name
}

output "instance_profile" {
  description = "The name of the instance profile."
  value       = aws_iam_instance_profile.this.name
}
