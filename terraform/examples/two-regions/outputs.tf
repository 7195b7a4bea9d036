output "home_store" {
  description = "[store] of the agents at home."
  value       = { url = "s3://${module.archive.home.bucket}/mysql", region = var.home_region }
}

output "dr_store" {
  description = "[store] in the DR region, and what the agents at home watch."
  value       = { url = "s3://${module.archive.dr.bucket}/mysql", region = var.dr_region }
}

output "instance_profiles" {
  description = "For the nodes at home, the DR instance, its recovery, and the hosts that prune."
  value = {
    agent_home = module.agent_home.instance_profile
    agent_dr   = module.agent_dr.instance_profile
    recovery   = module.recovery.instance_profile
    prune_home = module.prune_home.instance_profile
    prune_dr   = module.prune_dr.instance_profile
  }
}

output "dr_kms_key_arn" {
  description = "The DR region's key: for recovery/, and for the copies of EBS snapshots."
  value       = module.archive.dr.kms_key_arn
}
