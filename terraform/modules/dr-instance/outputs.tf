output "instance_id" {
  description = "The instance."
  value       = aws_instance.dr.id
}

output "private_ip" {
  description = "Its address."
  value       = aws_instance.dr.private_ip
}

output "availability_zone" {
  description = "Where volumes have to be to be attached to it."
  value       = aws_instance.dr.availability_zone
}

output "data_volume_id" {
  description = "The volume that Terraform made; null where there is none."
  value       = one(aws_ebs_volume.data[*].id)
}

output "data_snapshot_id" {
  description = "The snapshot that it was made of; null where there is none."
  value       = one(aws_ebs_volume.data[*].snapshot_id)
}
