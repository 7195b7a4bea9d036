output "role_arn" {
  description = "The role in which S3 copies."
  value       = aws_iam_role.replication.arn
}
