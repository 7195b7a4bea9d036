output "role_arn" {
  description = "The role's ARN."
  value       = module.role.role_arn
}

output "role_name" {
  description = "The role's name, for further policies."
  value       = module.role.role_name
}

output "instance_profile" {
  description = "The name of the instance profile for the host that prunes."
  value       = module.role.instance_profile
}
