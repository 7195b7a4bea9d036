# The day itself: one machine in the DR region. It reads no other state and asks the DR region only, so write its variables down beforehand
# (outputs of the root above), in a file that is not kept at home.
#
#     terraform apply -var recovery_active=true      # a machine with the wider role: run mysql-pitr recover on it
#     terraform apply -var recovery_active=false     # the agent's own role again

terraform {
  required_version = ">= 1.9"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 6.0"
    }
  }
}

provider "aws" {
  region = var.dr_region

  # The provider asks STS who it is: this region's, not the global one, which is far away.
  sts_region = var.dr_region
}

module "dr_instance" {
  source = "../../../modules/dr-instance"

  name                      = "${var.name}-${var.shard}-dr"
  shard                     = var.shard
  recovery_active           = var.recovery_active
  agent_instance_profile    = "${var.name}-${var.shard}-agent-dr"
  recovery_instance_profile = "${var.name}-${var.shard}-recovery"
  ami                       = var.ami
  instance_type             = var.instance_type
  subnet_id                 = var.subnet_id
  security_group_ids        = var.security_group_ids
  kms_key_arn               = var.kms_key_arn
  volume                    = var.volume_from_latest_snapshot ? {} : null
}

output "instance_id" {
  description = "The machine."
  value       = module.dr_instance.instance_id
}

output "private_ip" {
  description = "Its address."
  value       = module.dr_instance.private_ip
}

output "data_snapshot_id" {
  description = "The snapshot that Terraform made the data volume of; null where mysql-pitr recover makes it."
  value       = module.dr_instance.data_snapshot_id
}
