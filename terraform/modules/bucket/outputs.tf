output "bucket" {
  description = "The bucket's name, known once everything that protects it is in place."
  value       = aws_s3_bucket.archive.id
  depends_on  = [aws_s3_bucket_versioning.archive, aws_s3_bucket_policy.archive, aws_s3_bucket_object_lock_configuration.archive]
}

output "bucket_arn" {
  description = "The bucket's ARN."
  value       = aws_s3_bucket.archive.arn
}

output "kms_key_arn" {
  description = "The ARN of the key that its objects are encrypted with; snapshots of this region may use it, too."
  value       = aws_kms_key.archive.arn
}
